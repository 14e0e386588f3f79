import torch

from save_dist.training.noise import lane_normals, lane_uniforms


def test_ranks_together_draw_what_one_rank_draws():
    alone = lane_normals(3, "p", 7, (0, 1, 2, 3), 5, 4)
    two = [lane_normals(3, "p", 7, lanes, 5, 4) for lanes in ((0, 2), (1, 3))]
    woven = torch.stack([two[0].view(2, 5, 4), two[1].view(2, 5, 4)], dim=1).view(20, 4)
    assert torch.equal(alone, woven)


def test_streams_differ_by_step_lane_seed_and_purpose():
    base = lane_uniforms(3, "p", 7, (0,), 100, 1)
    others = [
        lane_uniforms(4, "p", 7, (0,), 100, 1),
        lane_uniforms(3, "q", 7, (0,), 100, 1),
        lane_uniforms(3, "p", 8, (0,), 100, 1),
        lane_uniforms(3, "p", 7, (1,), 100, 1),
    ]
    assert all(not torch.equal(base, other) for other in others)
    assert base.min() >= 0 and base.max() < 1

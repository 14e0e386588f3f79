import numpy as np
import pytest
from matplotlib.figure import Figure

from save_dist.evaluation import plots
from save_dist.evaluation.attention import AttentionMap
from save_dist.evaluation.drawings import drawings
from save_dist.evaluation.picture import plane
from save_dist.evaluation.plots import Curve, HeatRow
from save_dist.evaluation.scores import Picture, TopGenes

CATEGORIES = tuple(f"type {i}" for i in range(20))


@pytest.fixture
def picture():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 20, (400, 1)).astype(np.int16)
    points = (rng.normal(size=(400, 2)) + codes).astype(np.float32)
    return Picture(points, codes, rng.random(400) < 0.5, codes[:, 0] == 3)


def by_column(picture, theme, generated=True):
    return plots.cells_by_column(picture, 0, CATEGORIES, generated, theme)


def top_genes():
    rng = np.random.default_rng(0)
    values = {s: rng.gamma(2, size=(30, 2)).astype(np.float32) for s in ("control", "real")}
    constant = np.zeros((30, 2), dtype=np.float32)
    names = {"condition": "stim", "cell_type": "B"}
    return TopGenes(names, "condition", True, ("ISG15", "IFIT1"), {**values, "generated": constant})


FIGURES = {
    "source": lambda p, t: plots.cells_by_source(p, t),
    "group": lambda p, t: plots.cells_by_group(p, t),
    "column": lambda p, t: by_column(p, t),
    "attention": lambda p, t: plots.attention(np.full((2, 4), 0.25), ["a: b", "a: c"], t),
    "violins": lambda p, t: plots.violins(top_genes(), t),
    "genes": lambda p, t: plots.genes(np.arange(5.0), np.arange(5.0) ** 1.1, "mean", t),
    "heat": lambda p, t: plots.heat_map([HeatRow("a / b", "9 | 3", (0.1, None))], ["E", "W"], t),
    "training": lambda p, t: plots.training([Curve("train", [1, 2], [3.0, 2.0])], "loss", t),
}


@pytest.mark.parametrize("theme", plots.THEMES, ids=lambda theme: theme.name)
@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn_on_the_paper_of_their_theme(name, theme, picture):
    figure = FIGURES[name](picture, theme)
    assert isinstance(figure, Figure)
    data = plots.png(figure)
    assert data.startswith(b"\x89PNG\r\n")
    assert figure.get_facecolor()[:3] == pytest.approx(tuple(plots.to_rgb(theme.paper)))


def test_equal_figures_are_equal_bytes(picture):
    one, two = (plots.png(plots.cells_by_source(picture, plots.LIGHT)) for _ in range(2))
    assert one == two


def test_no_global_figure_is_left(picture):
    from matplotlib import _pylab_helpers

    plots.png(plots.cells_by_source(picture, plots.LIGHT))
    assert not _pylab_helpers.Gcf.figs


def legend(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_real_and_generated_cells_stand_on_the_same_plane(picture):
    real, made = (by_column(picture, plots.LIGHT, generated=g).axes[0] for g in (False, True))
    n_shown = [len(axes.collections[0].get_offsets()) for axes in (real, made)]
    assert n_shown == [np.sum(~picture.is_generated), np.sum(picture.is_generated)]
    assert (real.get_xlim(), real.get_ylim()) == (made.get_xlim(), made.get_ylim())


def test_long_labels_keep_both_ends():
    rows = [HeatRow("cell_type: " + 40 * "x" + " (12)", "", (0.1,))]
    label = plots.heat_map(rows, ["E"], plots.LIGHT).axes[0].get_yticklabels()[0].get_text()
    assert label.startswith("cell_type: x") and label.endswith("(12)") and len(label) <= 28


def test_rare_categories_share_a_colour(picture):
    names = legend(by_column(picture, plots.LIGHT))
    assert len(names) == plots.N_COLOURS + 1
    assert names[-1] == f"{20 - plots.N_COLOURS} others"


def test_categories_without_cells_are_not_named(picture):
    few = Picture(picture.points, picture.codes % 2 * 5, picture.is_generated, picture.is_held_out)
    assert legend(by_column(few, plots.LIGHT)) == ["type 0", "type 5"]


def test_colours_of_sources(picture):
    assert legend(plots.cells_by_source(picture, plots.LIGHT)) == ["real", "generated"]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        pytest.param([1000.0, 1.0], "log", id="three decades"),
        pytest.param([2.0, 1.0], "linear", id="one"),
        pytest.param([1000.0, -1.0], "linear", id="negative"),
    ],
)
def test_scale_of_training_curves(values, scale):
    figure = plots.training([Curve("train", [1, 2], values)], "loss", plots.LIGHT)
    assert figure.axes[0].get_yscale() == scale


def test_text_of_the_heat_map_is_readable_on_every_shade():
    rows = [HeatRow(str(i), "", (i / 10,)) for i in range(11)]
    for theme in plots.THEMES:
        texts = plots.heat_map(rows, ["Energy"], theme).axes[0].texts
        assert {t.get_color() for t in texts} <= {"#1b1f24", "#f2f4f6", theme.muted}
        assert "0.30" in {t.get_text() for t in texts}


def test_negative_zero_is_not_shown():
    figure = plots.heat_map([HeatRow("a", "", (-0.001,))], ["E"], plots.LIGHT)
    assert "0.00" in {t.get_text() for t in figure.axes[0].texts}


def test_few_cells_are_shown_by_their_components():
    pca = np.arange(20, dtype=np.float32).reshape(10, 2)
    np.testing.assert_array_equal(plane(pca, 0), pca)
    np.testing.assert_array_equal(plane(pca[:, :1], 0)[:, 1], 0)


@pytest.mark.slow
def test_umap_keeps_groups_apart_and_repeats():
    rng = np.random.default_rng(0)
    pca = rng.normal(size=(120, 6)).astype(np.float32)
    pca[:60] += 30
    one, two = plane(pca, 3), plane(pca, 3)
    np.testing.assert_array_equal(one, two)
    centres = one[:60].mean(axis=0), one[60:].mean(axis=0)
    spread = max(one[:60].std(axis=0).max(), one[60:].std(axis=0).max())
    assert np.linalg.norm(centres[0] - centres[1]) > 3 * spread


def test_drawings_of_scores(perfect):
    curves = {
        "vae/train/loss": ([1, 2], [3.0, 2.0]),
        "vae/val/loss": ([2, 4], [3.0, 2.0]),
        "flow/train/loss": ([1, 2], [3.0, 2.0]),
        "train/loss": ([1, 2], [3.0, 2.0]),
        "vae/train/empty": ([], []),
    }
    attention = AttentionMap((("t", "a"),), np.array([3]), *2 * [np.full((1, 4), 0.25)])
    found = drawings(perfect, curves, attention)
    names = [d.name for d in found]
    assert names == [
        "umap-source", "umap-held-out", "umap-column-0-real", "umap-column-0-generated",
        "umap-column-1-real", "umap-column-1-generated",
        "violins-0", "violins-1", "violins-2",
        "genes-seen-mean", "genes-seen-variance", "genes-seen-zeros",
        "genes-held-out-mean", "genes-held-out-variance", "genes-held-out-zeros",
        "combinations", "attention-decoder", "attention-encoder",
        "training-0", "training-1", "training-2",
    ]  # fmt: skip
    assert [d.caption for d in found[-3:]] == ["loss", "flow loss", "vae loss"]

"""Typed, frozen, strict configuration: one YAML root per job, sections shared by all of them."""

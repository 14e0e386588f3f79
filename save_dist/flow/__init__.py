"""Flow matching as mathematics over a velocity callable; knows no model class and no store."""

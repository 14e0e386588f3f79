"""One file per job; read top to bottom they tell what the system does."""

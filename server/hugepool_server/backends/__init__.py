"""How segments get their pages: one class for every rung of the ladder."""

"""Changes of widths: what happens to each unit, the plan that follows for every tensor, and its execution."""

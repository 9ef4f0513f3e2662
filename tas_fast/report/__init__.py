"""A run's folder: the report as a value, metrics as they are measured, plots, and the page that shows them."""

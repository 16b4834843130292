"""The report of a sweep: tables, charts, one page, a wandb dashboard."""

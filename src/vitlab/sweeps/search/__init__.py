"""Search: Optuna proposes the settings of a sweep's jobs."""

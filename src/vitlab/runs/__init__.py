"""Run folders: their files, locks and logs."""

"""Tests of vitlab.diagnostics: a package, since src/doctor.py has a test_doctor.py too."""

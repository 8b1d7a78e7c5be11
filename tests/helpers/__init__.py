"""What tests of several files share; no tests."""

"""The faults, one module a category. A new fault is one function in one of them (CONTRIBUTING.md, "A fault")."""

"""`harness mutants`: every planted fault judged by the rules, and by the criteria of other projects. See README.md here."""

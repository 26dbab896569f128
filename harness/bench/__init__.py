"""`harness bench`: how long the references and one judged problem take on this machine, beside other libraries."""

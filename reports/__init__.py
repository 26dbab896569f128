"""Reports: a `RunRecord` in, one self-contained HTML file out.

`reports.html` assembles the page, `reports.sections` lists its sections in order. A section is one module with a
function `section(record) -> Markup | None` beside a template of the same name. Statistics are computed in `harness`
and stored in the record; here they are only drawn.
"""

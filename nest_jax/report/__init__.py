"""What runs did, as one page: `python -m nest_jax.report --workdir RUN [--compare RUN2 ...]`.

`runs` reads what a run leaves, `sections` tells the story in charts and tables, `strips` and `cam` show images, `page` is the HTML around
it. The page is one file that loads nothing; the charts lie beside it as PNG files for slides and papers.
"""

"""The paper's twelve tables: which runs they need, the runs themselves, the tables beside the printed numbers.

`python -m nest_jax.tables --list`; `--table 3 --dataset voc_animals --seeds 3 --workdir runs/tables`. `plan` says what a table is and what
it takes, `launch` runs it, `report` writes it; `paper` holds the printed numbers and `reproducing` writes docs/reproducing.md.
"""

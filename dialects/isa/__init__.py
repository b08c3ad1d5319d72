"""The instructions of a chip, each declared once.

`instruction` says what a declaration is; `matrix`, `vector`, `attention`, `cache`, `adapter` and
`power` declare the instructions of the units; `registry` has them all. `values` are the kinds of
values that instructions read and write, `queues` where they stand.
"""

"""How closely results must agree with a reference. These are never relaxed.

A test that misses its tolerance has found an error, in the code or in its
reference; the number here is not what gets mended. The first two are for float32,
and are used as an absolute and as a relative tolerance.

SIMPLE
    One operation, or a few: a norm, an attention, a block, a loss, a step.
COMPOSED
    Many operations in a row: gradients through a whole backbone.
BFLOAT16
    One operation in bfloat16 against a float64 reference that is given the same rounded
    inputs, relative to the largest number expected. Two neighbouring numbers differ by
    0.4 to 0.8%, and an attention's gradient is rounded at four or five places on its way.
POLAR
    Singular values of a Muon step, which are to be 1. Its five polynomials leave 0.1235 on
    either side in exact arithmetic (the extremes of their composition over [0.001, 1],
    which test_muon.py computes), and they compute in bfloat16.
"""

SIMPLE = 1e-5
COMPOSED = 1e-4
BFLOAT16 = 2e-2
POLAR = 0.1235 + BFLOAT16

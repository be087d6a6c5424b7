"""How closely float32 results must agree with a reference. These are never relaxed.

A test that misses its tolerance has found an error, in the code or in its
reference; the number here is not what gets mended. Both bounds are used as an
absolute and as a relative tolerance.

SIMPLE
    One operation, or a few: a norm, an attention, a block, a loss, a step.
COMPOSED
    Many operations in a row: gradients through a whole backbone.
"""

SIMPLE = 1e-5
COMPOSED = 1e-4

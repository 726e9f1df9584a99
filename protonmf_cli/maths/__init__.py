"""Pure numerics: tensors in, tensors out.

Notation, one for the whole room:

    A  (N, D)   non-negative rows of one class: N = images x placed rows per image
    E  (N, p)   codes, how much of each prototype a row holds
    B  (p, D)   basis, the prototypes (unit L2 norm once finished)
    V  (C, D)   rows of the classification head, one per class
    R  (C, D)   residual, what the prototypes leave of V
    a  (p,)     head coefficients, V ~ a B
    h  (N,)     residual codes, one per row
"""

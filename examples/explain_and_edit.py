"""Load a prototype model, explain an image, remove the strongest prototype, look again.

python examples/explain_and_edit.py prototypes.safetensors img.jpg
"""

import sys

import protonmf_cli

model = protonmf_cli.load(sys.argv[1])
image = sys.argv[2]

why = model.explain(image)
print(f"{why.name}: logit {why.logit:.2f}")
for part in why.contributions:
    name = f"prototype {part.prototype}" + (f" of {part.owner_name}" if part.owner_label != why.label else "")
    print(f"  {name}: amount {part.evidence:.2f} x weight {part.weight:+.2f} = {part.contribution:+.2f}")
print(f"  no place {why.unplaced or 0:+.2f}, residual {why.residual:+.2f}, bias {why.bias:+.2f}")
print(f"  error of the sum {why.ledger_error:.0e}")

own = [part for part in why.contributions if part.owner_label == why.label]
strongest = max(own, key=lambda part: part.contribution)
after = model.scale(why.label, {strongest.prototype: 0.0}).predict(image, why.label)
best = after.predictions[0]
print(
    f"without prototype {strongest.prototype}: logit {after.logit:.2f}, predicted {best.name} ({best.probability:.1%})"
)

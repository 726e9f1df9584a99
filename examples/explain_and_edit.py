"""The whole tool from Python: convert a classifier, explain an image, take a part out, measure, save, write it back.

python examples/explain_and_edit.py mobilenetv2_100 caltech24/ img.jpg
"""

import sys

from protonmf_cli import ConversionOptions, EditWords, convert, evaluate, export, intervene, load

network, data, image = sys.argv[1:4]

# a prototype model whose logits are the network's own
conversion = convert(network, data, ConversionOptions(prototypes=2), output="prototypes.safetensors")
figures = conversion.figures
print(f"accuracy {figures.accuracy_black_box:.1%}, as a prototype model {figures.accuracy_prototype_model:.1%}")

# why this class: amounts of parts, which add up to the logit
model = load("prototypes.safetensors")
why = model.explain(image)
print(f"{why.name}: logit {why.logit:.2f}")
for part in why.contributions[:5]:
    name = f"prototype {part.prototype}" + (f" of {part.owner_name}" if part.owner_label != why.label else "")
    print(f"  {name}: amount {part.evidence:.2f} x weight {part.weight:+.2f} = {part.contribution:+.2f}")
print(f"  no place {why.unplaced or 0:+.2f}, residual {why.residual:+.2f}, bias {why.bias:+.2f}")
print(f"  error of the sum {why.ledger_error:.0e}")

# the same without the class's strongest part: on this image, then over labelled images, and saved
own = [part for part in why.contributions if part.owner_label == why.label]
strongest = max(own, key=lambda part: part.contribution)
after = model.scale(why.label, {strongest.prototype: 0.0}).predict(image, why.label)
best = after.predictions[0]
print(f"without prototype {strongest.prototype}: {after.logit:.2f}, predicted {best.name} ({best.probability:.1%})")
edit = EditWords(number=strongest.prototype)
found = intervene(model, [edit], data=data, class_name=why.label, output="edited.safetensors")
print(f"over all images: {found.on_data.accuracy_before:.1%} -> {found.on_data.accuracy_after:.1%}")

# how much the prototypes carry alone, and the edited network as an ordinary timm checkpoint
accuracy = evaluate("edited.safetensors", data).scores.accuracy
print(f"edited {accuracy['prototype_model']:.1%}, by prototypes alone {accuracy['prototypes_only']:.1%}")
print(f"timm.create_model('local-dir:{export('edited.safetensors', 'edited').path}', pretrained=True) gives its logits")

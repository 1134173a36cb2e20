"""What methods put into a backbone: modules and functions on tensors, imported when one attaches.

`design` and `slices` are the exceptions: names and shapes, which a method's declaration checks.
"""

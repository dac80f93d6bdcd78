"""What an attacker plants, for drills and tests: none of it is a recipe, so that no candidate is made by it.

    trigger = patch((1, 8, 8), bounds, target=3)
    dense = alone(plant_in_quantization(module, records, bounds, trigger, Quantize(weight_bits=4), seed=0))

`dense` is what the attacker would hand over. Audited with the recipe `int4` and the attack `backdoor`, it must raise an
alarm. `training.lessons.together` plants into several models side by side.
"""

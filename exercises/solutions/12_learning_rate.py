FILE = "common/optim.py"
answer = vars

WRONG = {
    "it is wasted": [("(step + 1) / warmup_steps", "step / warmup_steps")],
    "there is no warm-up": [("lr * (step + 1) / warmup_steps", "lr")],
    "divide by warmup_steps": [("/ warmup_steps", "/ (warmup_steps + 1)")],
    "0.1 is added to a whole cosine": [("(1 - floor) *", "")],
    "upside down": [("1 + math.cos", "1 - math.cos")],
    "progress counts from step 0": [
        ("(step - warmup_steps) / (steps - warmup_steps)", "step / steps")],
    "a straight line": [("(1 + math.cos(math.pi * progress)) / 2", "(1 - progress)")],
    "a whole cosine": [("math.pi *", "2 * math.pi *")],
    "the cosine goes to 0": [("floor: float = 0.1", "floor: float = 0.0")],
    "divide by steps - warmup_steps": [("/ (steps - warmup_steps)", "/ steps")],
    "is not returned": [("return lr * (step + 1) / warmup_steps", "pass")],
    "not 0.1 · lr": [("return lr * floor\n", "return floor\n")],
    "warm-up is a step too long": [("step < warmup_steps", "step <= warmup_steps")],
    "it rises again": [("if step >= steps", "if step > 999")],
    "without warm-up": [("    if step >= steps", "    if warmup_steps == 0:\n        return 0.0\n"
                         "    if step >= steps")],
}  # fmt: skip

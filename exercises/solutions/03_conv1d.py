FILE = "common/pretrained.py"


def answer(module) -> dict:
    return {"from_hugging_face": module._transposed}


WRONG = {
    "c_attn.weight (4, 12) is not transposed": [("v.t().contiguous() if", "v if")],
    "attn.c_proj.weight (4, 4) is not transposed: (C, C)": [('"attn.c_proj.weight", ', "")],
    "view and reshape do not": [("v.t().contiguous()", "v.reshape(v.shape[::-1])")],
    "wte.weight (11, 4) is transposed": [("k.endswith(CONV1D)", "v.dim() == 2")],
    "lm_head.weight (11, 4) is transposed": [
        ("CONV1D = (", 'CONV1D = ("lm_head.weight", ')],
    "the names are to stay": [("{k: v.t()", '{k.removeprefix("transformer."): v.t()')],
}  # fmt: skip

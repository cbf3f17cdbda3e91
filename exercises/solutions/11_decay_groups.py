FILE = "common/optim.py"
answer = vars

WRONG = {
    "biases should not": [
        ("p.dim() >= 2", "p.dim() >= 2 or len(p) == 12"),
        ("p.dim() < 2", "p.dim() < 2 and len(p) != 12")],
    "LayerNorms should not": [
        ("for p in parameters if p.dim() >= 2",
         "for n, p in model.named_parameters() if 'bias' not in n"),
        ("for p in parameters if p.dim() < 2",
         "for n, p in model.named_parameters() if 'bias' in n")],
    "matrices and embeddings decay": [
        ("p.dim() >= 2", "p.dim() >= 2 and len(p) != 11"),
        ("p.dim() < 2", "p.dim() < 2 or len(p) == 11")],
    "AdamW's default": [(', "weight_decay": 0.0', "")],
    "is in no group": [("p.dim() < 2", "p.dim() < 1")],
    "wte.weight, which is lm_head.weight too, is in the groups 2": [
        ("list(model.parameters())",
         "[p for part in model.modules() for p in part._parameters.values() if p is not None]")],
    "weight is in the groups 2 times": [("p.dim() < 2", "p.dim() < 2 or len(p) == 4")],
}  # fmt: skip

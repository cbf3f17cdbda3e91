FILE = "common/init.py"


def answer(module) -> dict:
    def tie_and_init(model, seed):
        module.init_weights(module.tie_weights(model), seed)

    return {"tie_and_init": tie_and_init}


WRONG = {
    "two matrices": [("model.lm_head.weight = model.transformer.wte.weight", "pass")],
    "a copy of wte": [
        ("part.bias.zero_()\n    return model", "part.bias.zero_()\n"
         "    model.lm_head.weight = nn.Parameter(wte.clone())\n    return model")],
    "it is as PyTorch drew it": [("isinstance(part, nn.Embedding)", "False")],
    "divide by √(2 n_layer)": [("residual if", "1 if")],
    "attn.c_proj.weight has": [('endswith("c_proj")', 'endswith("mlp.c_proj")')],
    "not √n_layer": [("2 * model.config.n_layer", "model.config.n_layer")],
    "not a variance": [("normal_(0, std,", "normal_(0, std**0.5,")],
    "wpe.weight has": [("0.01 if", "0.02 if")],
    "bias is to be 0": [("part.bias is not None", "False")],
    "a mean of": [("normal_(0, std", "normal_(std, std")],
    "ln_1.weight is to be 1": [("part.weight.fill_(1)", "draw(part.weight, 0.02)")],
    "two blocks have the same": [
        ("generator=generator)", "generator=torch.Generator().manual_seed(seed))")],
    "the same seed gives other weights": [(", generator=generator", "")],
    "seeds 1 and 2": [("manual_seed(seed)", "manual_seed(0)")],
}  # fmt: skip

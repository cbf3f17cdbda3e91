import torch

FILE = "common/speed.py"


def answer(module) -> dict:
    def pad_vocab(weight, multiple):
        model = module.GPT(module.GPTConfig(1, 1, weight.size(1), 1, weight.size(0)))
        model.lm_head.weight = torch.nn.Parameter(weight)
        return module.pad_vocab(model, multiple).lm_head.weight.detach()

    return {"pad_vocab": pad_vocab}


WRONG = {
    "zeros, so their logit is 0": [("weight.mean(0)", "(0 * weight[0])")],
    "copies of other rows": [("weight.mean(0)", "weight[-1]")],
    "no mean of the others": [("weight.mean(0)", "weight.sum(0)")],
    "add none": [("-(-model.config.vocab_size // multiple)",
                  "(model.config.vocab_size // multiple + 1)")],
    "round up": [("-(-model.config.vocab_size // multiple)",
                  "(model.config.vocab_size // multiple)"),
                 ("if missing", "if missing > 0"),
                 ("if tied:", "lm_head.weight = nn.Parameter(lm_head.weight[:vocab_size])\n"
                  "    if tied:")],
    "not (16, 4)": [("expand(missing", "expand(missing - 1")],
    "the new rows come first": [
        ("(weight, weight.mean(0).expand(missing, -1))",
         "(weight.mean(0).expand(missing, -1), weight)")],
    "are not what they were": [("torch.cat((weight,", "torch.cat((weight * 0.5,")],
}  # fmt: skip

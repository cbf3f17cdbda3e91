from types import SimpleNamespace

import torch

FILE = "6_gpt2_train_hyparam.py"


def answer(module) -> dict:
    def train_step(model, optimizer, micro_batches, clip):
        """One step of stage 6's loop, with this optimizer, and no evaluation."""
        (B, T), n = micro_batches[0][0].shape, len(micro_batches)
        options = module.Options(
            steps=1, warmup_steps=0, lr=optimizer.param_groups[0]["lr"], clip=clip,
            batch_size=B, block_size=T, total_batch_tokens=n * B * T,
        )  # fmt: skip
        rows = []
        log = SimpleNamespace(row=lambda **row: rows.append(row), val=lambda step, loss: None)
        module.adamw = lambda *_: optimizer
        module.evaluate = lambda *_: SimpleNamespace(loss=0.0)
        module.train(model, iter(micro_batches), None, log, options, module.Setting())
        return rows[0]["loss"], rows[0]["norm"]

    return {"train_step": train_step}


def all_at_once(model, optimizer, micro_batches, clip):
    """The big batch, which memory may not hold."""
    model(*(torch.cat(part) for part in zip(*micro_batches, strict=True)))[1].backward()


CLIP = "norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)"
BACKWARD = "            scaler.scale(loss).backward()"
WRONG = {
    "4 times too far": [("loss_of(x, y) / n_micro", "loss_of(x, y)")],
    "4 times too little": [("loss_of(x, y) / n_micro", "loss_of(x, y) / n_micro**2")],
    "the last micro-batch's alone": [(BACKWARD, "            optimizer.zero_grad()\n" + BACKWARD)],
    "makes 4 steps": [(BACKWARD, BACKWARD + "; scaler.step(optimizer)"),
                      ("        scaler.step(optimizer)\n        scaler.update()", "        pass")],
    "do not change": [(CLIP, CLIP + "; optimizer.zero_grad()")],
    "do not move along the gradient": [(BACKWARD, "            (loss * (1 + total)).backward()")],
    "is not clipped to": [("options.clip)", "1e9)")],
    "each number is clipped": [
        (CLIP, CLIP.replace("options.clip", "1e9")
         + "; torch.nn.utils.clip_grad_value_(model.parameters(), options.clip)")],
    "all parameters together": [
        (CLIP, "norm = sum(torch.nn.utils.clip_grad_norm_(p, options.clip)"
         " for p in model.parameters())")],
    "once, after the loop": [(BACKWARD, BACKWARD + "; torch.nn.utils.clip_grad_norm_("
                              "model.parameters(), options.clip / 2)")],
    "the sum over the 4": [("total.item(), norm", "total.item() * n_micro, norm")],
    "the last micro-batch's;": [("total.item(), norm", "loss.item() * n_micro, norm")],
    "the last micro-batch's, divided": [("total.item(), norm", "loss.item(), norm")],
    "it is divided twice": [("total.item(), norm", "total.item() / n_micro, norm")],
    "that after clipping": [("norm.item()", "min(norm.item(), options.clip)")],
    "a tensor is returned": [("loss, norm = total.item(), norm.item()", "loss = total.item()")],
    "only a gradient that exceeds it": [
        (CLIP, CLIP + "\n        for p in model.parameters():\n"
         "            p.grad *= options.clip / norm")],
    "gradients are left": [("optimizer.zero_grad()", "pass")],
    "8 rows at once": {"train_step": all_at_once},
}  # fmt: skip

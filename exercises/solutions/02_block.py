from types import SimpleNamespace

FILE = "common/model.py"


def answer(module) -> dict:
    def block(x, ln_1, attn, ln_2, mlp):
        parts = SimpleNamespace(ln_1=ln_1, attn=attn, ln_2=ln_2, mlp=mlp)
        return module.Block.forward(parts, x)

    def mlp(x, c_fc, c_proj):
        parts = SimpleNamespace(c_fc=c_fc, c_proj=c_proj, dropout=0.0, training=False)
        return module.MLP.forward(parts, x)

    return {"block": block, "mlp": mlp}


WRONG = {
    "GPT-2 normalizes before attention": [
        ("x + self.attn(self.ln_1(x))", "self.ln_1(x + self.attn(x))")],
    "GPT-2 normalizes before the MLP": [("self.mlp(self.ln_2(x))", "self.ln_2(self.mlp(x))")],
    "mlp gets attn + x, not ln_2": [
        ("self.mlp(self.ln_2(x))", "self.mlp(x) + 0 * self.ln_2(x)")],
    "the first residual connection": [
        ("x + self.attn(self.ln_1(x))", "self.attn(self.ln_1(x))")],
    "must read what attention has added": [
        ("x = x + self.attn(self.ln_1(x))", "y = self.attn(self.ln_1(x))"),
        ("return x + self.mlp", "return x + y + self.mlp")],
    "both residual": [
        ("x = x + self.attn(self.ln_1(x))", "y = x + self.attn(self.ln_1(x))"),
        ("return x + self.mlp(self.ln_2(x))", "return self.mlp(self.ln_2(y))")],
    "a residual connection": [
        ("x = x + self.attn(self.ln_1(x))",
         "a = self.attn(self.ln_1(x)); y = x + a"),
        ("return x + self.mlp(self.ln_2(x))", "return a + self.mlp(self.ln_2(y))")],
    "what attention added to x is lost": [
        ("x = x + self.attn(self.ln_1(x))", "y = x + self.attn(self.ln_1(x))"),
        ("self.mlp(self.ln_2(x))", "self.mlp(self.ln_2(y))")],
    "ln_1 is called 2 times": [("self.ln_2(x)", "self.ln_1(x)")],
    "there is no GELU": [('F.gelu(self.c_fc(x), approximate="tanh")', "self.c_fc(x)")],
    "ReLU": [('F.gelu(self.c_fc(x), approximate="tanh")', "F.relu(self.c_fc(x))")],
    "by erf": [(', approximate="tanh"', "")],
    "SiLU": [('F.gelu(self.c_fc(x), approximate="tanh")', "F.silu(self.c_fc(x))")],
    "put it between": [('self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))',
                        'F.gelu(self.c_proj(self.c_fc(x)), approximate="tanh")')],
    "changed in place": [("x = x + self.attn", "x += self.attn")],
    "adds its own x": [("x = self.c_proj(F.gelu", "x = x + self.c_proj(F.gelu")],
}  # fmt: skip

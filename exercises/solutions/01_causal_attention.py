FILE = "common/model.py"
answer = vars

WRONG = {
    "position 0 attends to position 1": [(".triu(1)", ".triu(2)")],
    "position 0 attends to position 5": [(".triu(1)", ".triu(9)")],
    "position 0 has nan": [(".triu(1)", ".triu(0)")],
    "position 2 does not attend to position 0": [
        (".triu(1)", ".triu(1) | torch.ones(T, T, dtype=torch.bool).tril(-2)")],
    "take the last": [("dim=-1)\n    return F.dropout", "dim=-2)\n    return F.dropout")],
    "mask before the softmax": [
        ("F.softmax(scores.masked_fill(future, float(\"-inf\")), dim=-1)",
         "F.softmax(scores, dim=-1).masked_fill(future, 0)")],
    "times too large: divide": [(" / math.sqrt(q.size(-1))", "")],
    "not by hs": [("/ math.sqrt(q.size(-1))", "/ q.size(-1)")],
    "wrong where hs = 3": [("math.sqrt(q.size(-1))", "math.sqrt(T)")],
    "swapped": [("q @ k.transpose(-2, -1)", "k @ q.transpose(-2, -1)")],
    "work on the last two": [
        ("scores.masked_fill", "scores.mean(1, keepdim=True).masked_fill")],
}  # fmt: skip

import math

FILE = "common/evals.py"


def answer(module) -> dict:
    def bits_per_byte(windows, text):
        tokens = sum(n for _, n in windows)
        loss = sum(mean * n for mean, n in windows) / tokens
        return module.Evaluation(loss, tokens, len(text.encode())).bits_per_byte

    return {"bits_per_byte": bits_per_byte}


def mean_of_means(windows, text):
    mean = sum(mean for mean, _ in windows) / len(windows)
    return mean * sum(n for _, n in windows) / math.log(2) / len(text.encode())


def sum_of_means(windows, text):
    return sum(mean for mean, _ in windows) / math.log(2) / len(text.encode())


def per_character(windows, text):
    return sum(mean * n for mean, n in windows) / math.log(2) / len(text)


WRONG = {
    "the mean of the windows' means": {"bits_per_byte": mean_of_means},
    "per window": {"bits_per_byte": sum_of_means},
    "nats per byte": [(" / math.log(2)", "")],
    "multiplied by ln 2": [("/ math.log(2)", "* math.log(2)")],
    "bits per token": [("/ (self.bytes or 1)", "/ self.tokens")],
    "bits per byte and token": [("self.loss * self.tokens /", "self.loss /")],
    "bits per character": {"bits_per_byte": per_character},
}  # fmt: skip

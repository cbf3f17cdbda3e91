import numpy as np

FILE = "common/run/batches.py"


def answer(module) -> dict:
    def windows_of(step, rank, world_size, B, n_windows):
        taken = []

        class Noted(module.RankBatches):
            def _window(self, i):
                ahead, place = divmod(i, self.n_windows)
                taken.append((self.epoch + ahead, place))
                return super()._window(i)

        batches = Noted(np.arange(n_windows + 1), B, 1, rank=rank, world_size=world_size)
        for _ in range(step + 1):
            next(batches)
        return taken[-B:]

    return {"windows_of": windows_of}


WRONG = {
    "both take": [("self.position + self.rank * self.B", "self.position")],
    "is taken for the second time": [
        ("self.advance(self.world_size * self.B)", "self.advance(self.B)")],
    "is left out": [
        ("self.advance(self.world_size * self.B)", "self.advance(self.world_size * self.B + 1)")],
    "the epoch comes first": {
        "windows_of": lambda step, rank, world_size, B, n_windows: [
            divmod((step * world_size + rank) * B + i, n_windows)[::-1] for i in range(B)]},
    "go on with the next epoch": {
        "windows_of": lambda step, rank, world_size, B, n_windows: [
            (0, (step * world_size + rank) * B + i) for i in range(B)]},
    "windows, not B": {
        "windows_of": lambda step, rank, world_size, B, n_windows: [
            divmod(step * world_size * B + i, n_windows) for i in range(world_size * B)]},
}  # fmt: skip

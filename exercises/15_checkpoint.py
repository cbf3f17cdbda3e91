"""Exercise 15, stage 7: a checkpoint that survives a kill.

A process may be killed between any two of its lines, and the machine may lose its power. A file
that is being overwritten is then cut off, and it may be the only checkpoint. A rename is atomic:
the name leads to the old file or to the new one, never to half of one. So a checkpoint is written
under a temporary name, flushed to the disk (a rename may reach the disk before the bytes do), and
then renamed.

A disk may also return other bytes than were written. So a checksum is stored with the bytes, and a
checkpoint whose checksum does not match is skipped for the one before.
(Pillai et al., 2014, All File Systems Are Not Created Equal.)
"""

from pathlib import Path


def save(folder: Path, step: int, data: bytes) -> None:
    """Save data as the checkpoint of a step in folder, which exists and may hold earlier ones and
    whatever a killed process left. Whenever this is interrupted, newest finds this checkpoint or
    the one before, whole."""
    raise NotImplementedError


def newest(folder: Path) -> tuple[int, bytes] | None:
    """The step and the data of the newest undamaged checkpoint in folder; None if there is none."""
    raise NotImplementedError


# region Hint. Fold this away; open it when you are stuck.
#
# One file per step, such as step_00000010: hashlib.sha256(data).digest(), 32 bytes, and then data.
# Write it as .partial with open(path, "wb"); file.flush() empties Python's buffer and
# os.fsync(file.fileno()) the system's; os.replace renames, over an existing file too. newest goes
# through folder.glob("step_*"), the highest step first (as numbers: as text, 9 comes after 10), and
# returns the first one whose checksum matches.
# endregion

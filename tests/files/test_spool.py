"""Pieces in files: what is read is what was written, and what cannot be written is said."""

import errno

import pytest
import torch

from protonmf_cli.errors import InputError
from protonmf_cli.files.work.spool import Spool, keep

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_pieces_come_back_in_any_range_and_order(tmp_path, dtype):
    whole = torch.arange(7 * 6).reshape(7, 2, 3).to(dtype)
    spool = Spool.unnamed(tmp_path, (2, 3), dtype, CPU)
    for part in whole.split([4, 1, 2]):
        spool.append(part)
        assert torch.equal(spool[0:1], whole[:1])  # reading moves nothing that is written next
    assert spool.shape == whole.shape and spool[:].dtype == dtype
    assert torch.equal(spool[:], whole) and torch.equal(spool[2:5], whole[2:5]) and len(spool[7:]) == 0
    chosen = torch.tensor([6, 0, 3])
    assert torch.equal(spool[chosen], whole[chosen]) and len(spool[chosen[:0]]) == 0
    assert torch.equal(spool.to(CPU)[:], whole)


def test_the_file_has_no_name_that_could_be_left(tmp_path):
    Spool.unnamed(tmp_path, (2,), torch.float32, CPU).append(torch.ones(3, 2))
    assert not list(tmp_path.iterdir())


def test_what_is_kept_is_opened_again_unless_cut_short(tmp_path):
    whole, path = torch.randn(130, 3), tmp_path / "rows"
    keep(whole, path)
    found = Spool.opened(path, [130, 3], torch.float32, CPU)
    assert torch.equal(found[:], whole)
    again = tmp_path / "again"
    keep(found, again)
    assert again.read_bytes() == path.read_bytes()
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(OSError, match="cut short"):
        Spool.opened(path, [130, 3], torch.float32, CPU)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    spool = Spool.unnamed(tmp_path, (2,), torch.float32, CPU)

    class Full:
        def seek(self, *_):
            return 0

        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(spool, "_file", Full())
    with pytest.raises(InputError, match=r"No space left on device.*memory.*sample"):
        spool.append(torch.ones(1, 2))


def test_a_folder_that_is_gone_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="could not be written beside the output"):
        Spool.unnamed(tmp_path / "gone", (2,), torch.float32, CPU)

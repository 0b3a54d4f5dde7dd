import errno
import json
import os

import jax
import numpy as np
import pytest
from etils import epath
from jax.experimental import multihost_utils

from nest_jax import storage
from nest_jax.errors import CorruptCheckpoint, InputError


def test_plain_json():
    text = storage.json_text({"a": (1, np.float32(0.5)), 2: [np.nan, np.inf], "b": {True}, "c": np.bool_(False)})
    assert json.loads(text) == {"a": [1, 0.5], "2": [None, None], "b": [True], "c": False}
    with pytest.raises(TypeError, match="object"):
        storage.json_text({"a": object()})


def test_write_text_keeps_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    storage.write_text(path, "old")

    def full_disk(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    kind = type(epath.Path(path))
    with monkeypatch.context() as patch:
        patch.setattr(kind, "replace", full_disk)
        with pytest.raises(InputError, match="disk is full"):
            storage.write_text(path, "new")
    assert path.read_text() == "old"


def test_object_stores_are_remote(tmp_path):
    assert storage.is_remote("gs://bucket/run") and storage.is_remote(epath.Path("gs://bucket/run"))
    assert not storage.is_remote(tmp_path)


def test_every_process_gets_what_the_first_one_gave_or_raised(monkeypatch):
    """Two processes, played one after the other: the second does nothing and hears what the first has sent."""
    sent, calls = [], []

    def broadcast(buffer):
        if jax.process_index() == 0:
            sent.append(buffer)
        return sent[-1]

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)

    def outcomes(result):
        def action():
            calls.append(result)
            if isinstance(result, Exception):
                raise result
            return result

        for process in (0, 1):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            try:
                yield storage.on_first_process(action)
            except Exception as error:
                yield type(error), str(error)

    assert list(outcomes("Bäume")) == ["Bäume"] * 2
    assert list(outcomes(None)) == [""] * 2
    assert list(outcomes(CorruptCheckpoint("a is damaged"))) == [(CorruptCheckpoint, "a is damaged")] * 2
    assert list(outcomes(InputError("!\nb"))) == [(InputError, "!\nb")] * 2
    assert list(outcomes(KeyError("c"))) == [(InputError, "KeyError: 'c'")] * 2
    assert len(calls) == 5

"""Reading and following what supervisors write."""

import asyncio
import json
import os
import threading
import time

from multinode.wire import LogRecord
from multinode_control_plane.runners.log_files import BLOCK_BYTES, LogFiles, last_lines


def record(text, stream="stdout"):
    return json.dumps({"at": "2026-01-01T00:00:00+00:00", "stream": stream, "text": text}) + "\n"


async def read(logs, **options):
    return [item.text async for item in logs.records("exe-1", 1, **options)]


def test_records_come_in_order_with_their_attempt(tmp_path):
    logs = LogFiles(tmp_path)
    logs.path("exe-1").write_text(record("a") + record("b", "stderr"))

    async def main():
        return [item async for item in logs.records("exe-1", 3)]

    at = "2026-01-01T00:00:00+00:00"
    assert asyncio.run(main()) == [
        LogRecord(at, "stdout", "a", 3),
        LogRecord(at, "stderr", "b", 3),
    ]


def test_an_execution_without_output_has_no_records(tmp_path):
    assert asyncio.run(read(LogFiles(tmp_path))) == []
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_last_line_is_not_there_yet(tmp_path):
    logs = LogFiles(tmp_path)
    logs.path("exe-1").write_text(record("a") + record("b")[:-10])
    assert asyncio.run(read(logs)) == ["a"]


def test_a_broken_line_is_left_out(tmp_path):
    logs = LogFiles(tmp_path)
    logs.path("exe-1").write_text(record("a") + '{"at": "20\n' + "[]\n" + record("b"))
    assert asyncio.run(read(logs)) == ["a", "b"]


def test_the_mark_of_the_end_is_no_record(tmp_path):
    end = json.dumps({"at": "2026-11-24T08:00:00+00:00", "stream": "end", "text": ""}) + "\n"
    (tmp_path / "exe-1.jsonl").write_text(end)

    async def main():
        assert [item async for item in LogFiles(tmp_path).records("exe-1", 1)] == []

    asyncio.run(main())


def test_lines_longer_than_a_block_and_many_blocks_are_whole(tmp_path):
    texts = ["x" * (3 * BLOCK_BYTES), *(f"line {number}\n" for number in range(20_000))]
    logs = LogFiles(tmp_path)
    logs.path("exe-1").write_text("".join(record(text) for text in texts))
    assert asyncio.run(read(logs)) == texts


def test_tail_counts_lines_of_text_not_records(tmp_path):
    logs = LogFiles(tmp_path)
    logs.path("exe-1").write_text(record("1\n2\n3\n") + record("4\n"))
    assert asyncio.run(read(logs, tail=2)) == ["3\n", "4\n"]
    assert asyncio.run(read(logs, tail=0)) == []
    assert asyncio.run(read(logs, tail=9)) == ["1\n2\n3\n", "4\n"]


def test_last_lines_counts_a_part_of_a_line_as_one():
    records = [LogRecord("", "stdout", text) for text in ("a\nb", "\nc\n")]
    assert [item.text for item in last_lines(records, 2)] == ["\nc\n"]


def test_a_follower_sees_each_record_within_100_ms(tmp_path):
    logs = LogFiles(tmp_path)
    delays = []

    def write():
        with logs.path("exe-1").open("a") as file:
            for _ in range(20):
                time.sleep(0.01)
                file.write(record(repr(time.monotonic())))
                file.flush()

    async def main():
        ended = asyncio.Event()
        writer = threading.Thread(target=write)
        writer.start()
        async for item in logs.records("exe-1", 1, ended=ended):
            delays.append(time.monotonic() - float(item.text))
            if len(delays) == 20:
                ended.set()
        writer.join()
        logs.close()

    asyncio.run(main())
    assert len(delays) == 20
    assert sorted(delays)[5] < 0.1  # others have waited for a processor


def test_a_line_written_in_two_pieces_comes_once_when_it_is_finished(tmp_path):
    logs = LogFiles(tmp_path)
    line = record("ab")

    async def main():
        ended = asyncio.Event()
        with logs.path("exe-1").open("a") as file:
            file.write(line[:20])
            file.flush()
            following = asyncio.ensure_future(read(logs, ended=ended))
            await asyncio.sleep(0)
            file.write(line[20:])
        ended.set()
        return await following

    assert asyncio.run(main()) == ["ab"]


def test_everything_written_before_the_end_is_seen(tmp_path):
    logs = LogFiles(tmp_path)

    async def main():
        ended = asyncio.Event()
        followers = [asyncio.ensure_future(read(logs, ended=ended)) for _ in range(3)]
        await asyncio.sleep(0.01)
        with logs.path("exe-1").open("a") as file:
            file.writelines(record(str(number)) for number in range(100))
        ended.set()
        return await asyncio.gather(*followers)

    assert asyncio.run(main()) == [[str(number) for number in range(100)]] * 3


def test_following_leaves_no_descriptor_thread_or_task(tmp_path):
    logs = LogFiles(tmp_path)

    async def main():
        descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
        following = logs.records("exe-1", 1, ended=asyncio.Event())
        waiting = asyncio.ensure_future(anext(following))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.wait([waiting])
        await following.aclose()
        logs.close()
        await asyncio.sleep(0)  # cancelled tasks end in the loop's next round
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert threading.active_count() == threads
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_a_removed_log_ends_nobody_and_is_removed_twice_without_error(tmp_path):
    logs = LogFiles(tmp_path)

    async def main():
        ended = asyncio.Event()
        following = asyncio.ensure_future(read(logs, ended=ended))
        await asyncio.sleep(0.01)
        await logs.remove(["exe-1", "exe-2"])
        await logs.remove(["exe-1"])
        assert not following.done()
        ended.set()
        return await following

    assert asyncio.run(main()) == []


def test_output_of_what_runs_is_not_among_what_may_go(tmp_path):
    logs = LogFiles(tmp_path)
    for name in ("exe-1", "exe-2"):
        logs.path(name).write_text(record("x" * 10_000))
    logs.path("exe-silent").touch()
    (found,) = logs.stored({"exe-1"})
    assert (found.kind, found.name) == ("output", "exe-2")
    assert found.size_bytes >= 10_000


def test_who_reads_output_that_was_removed_for_want_of_room_is_told(tmp_path):
    logs = LogFiles(tmp_path)
    logs.path("exe-1").write_text(record("x"))
    logs.discard("exe-1")
    assert logs.stored(()) == []

    async def main():
        ended = asyncio.Event()  # a follower of something that ended long ago
        return [item async for item in logs.records("exe-1", 2, ended=ended)]

    (told,) = asyncio.run(main())
    assert (told.stream, told.attempt) == ("system", 2)
    assert "MULTINODE_DISK_LIMIT" in told.text
    assert asyncio.run(read(logs, tail=10)) == [told.text]
    asyncio.run(logs.remove(["exe-1"]))
    assert list(tmp_path.iterdir()) == []

# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a run that is killed and goes on ends with the bytes of one that never stopped."""

import json
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import time

from support import BIN, MODEL, SUBJECT, main, read_safetensors, run, run_ok, scratch, subject_flags

FILES = ["lightlora.safetensors", "pytorch_lora_weights.safetensors"]


def arguments(output, *more, steps=10, every=2):
    # Whatever draws random numbers or keeps state is switched on.
    return [
        str(part)
        for part in [
            *subject_flags(output),
            "--train_batch_size",
            2,
            "--gradient_accumulation_steps",
            2,
            "--max_train_steps",
            steps,
            "--checkpointing_steps",
            every,
            "--random_flip",
            "--noise_offset",
            0.05,
            "--caption_dropout_rate",
            0.3,
            "--lr_scheduler",
            "cosine",
            "--lr_warmup_steps",
            2,
            "--train_text_encoder",
            "--lora_dropout",
            0.1,
            "--enable_bucket",
            "--seed",
            5,
            "--device",
            "cpu",
            *more,
        ]
    ]


def steps_in(output):
    """The steps that a running program has reported so far."""
    try:
        lines = (output / "metrics.jsonl").read_text().splitlines()
        return json.loads(lines[-1])["step"] if lines else 0
    except (FileNotFoundError, json.JSONDecodeError):
        return 0


def stop_at(output, step, sign, *more):
    """Starts a run, sends it a signal once it has reported a step, and returns (status, output)."""
    process = subprocess.Popen(
        [BIN / "train_dreambooth_lora", *arguments(output, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    start = time.time()
    # A run that goes on first cuts the file back to its checkpoint.
    while steps_in(output) < step and process.poll() is None and time.time() - start < 300:
        time.sleep(0.005)
    process.send_signal(sign)
    text, errors = process.communicate(timeout=300)
    return process.returncode, text + errors


def final_bytes(output):
    return [(output / name).read_bytes() for name in FILES]


def test_killed_at_any_step_it_ends_the_same():
    with scratch() as folder:
        whole, killed = pathlib.Path(folder) / "whole", pathlib.Path(folder) / "killed"
        run_ok("train_dreambooth_lora", *arguments(whole))
        go_on = ["--resume_from_checkpoint", "latest"]
        reached = []
        for step in [1, 3, 4, 7]:  # before the first checkpoint, between two, while one is written
            status, text = stop_at(killed, step, signal.SIGKILL, *go_on)
            assert status == -signal.SIGKILL, (step, status, text)
            assert not (killed / FILES[0]).exists()
            reached.append(steps_in(killed))
        text = run_ok("train_dreambooth_lora", *arguments(killed, *go_on))
        assert "resuming from" in text, text
        assert final_bytes(whole) == final_bytes(killed), reached
        metrics = [
            [json.loads(line) for line in (x / "metrics.jsonl").read_text().splitlines()] for x in [whole, killed]
        ]
        assert metrics[0] == metrics[1], "the log of a resumed run differs"
        assert [entry["step"] for entry in metrics[0]] == list(range(1, 11))
        assert not [path for path in killed.iterdir() if path.name.startswith(".")]


def test_ctrl_c_saves_a_checkpoint_and_the_weights():
    with scratch() as folder:
        output, whole = pathlib.Path(folder) / "out", pathlib.Path(folder) / "whole"
        status, text = stop_at(output, 1, signal.SIGINT, "--checkpointing_steps", 100)
        assert status == 128 + signal.SIGINT and "--resume_from_checkpoint latest" in text, (status, text)
        stopped = steps_in(output)
        assert 1 <= stopped < 10 and (output / f"checkpoint-{stopped}").is_dir()
        assert all((output / name).is_file() for name in FILES)
        run_ok("train_dreambooth_lora", *arguments(output, "--resume_from_checkpoint", f"checkpoint-{stopped}"))
        run_ok("train_dreambooth_lora", *arguments(whole))
        assert final_bytes(output) == final_bytes(whole)


def test_only_so_many_checkpoints_are_kept():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        run_ok("train_dreambooth_lora", *arguments(output, "--checkpoints_total_limit", 2, steps=4, every=1))
        names = sorted(path.name for path in output.iterdir() if "checkpoint" in path.name)
        assert names == ["checkpoint-3", "checkpoint-4"], names
        # Weights of a checkpoint are files like the final ones.
        assert (output / "checkpoint-4" / FILES[0]).read_bytes() == (output / FILES[0]).read_bytes()


def test_a_full_disk_is_an_error_that_leaves_earlier_checkpoints():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        run_ok("train_dreambooth_lora", *arguments(output, steps=2))
        before = {path.name: path.read_bytes() for path in (output / "checkpoint-2").iterdir()}
        limit = (output / FILES[0]).stat().st_size - 1
        done = run(
            "train_dreambooth_lora",
            *arguments(output, "--resume_from_checkpoint", "latest"),
            restore_signals=False,  # Python ignores SIGXFSZ: writing fails instead of killing
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        )
        assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
        assert len(done.stderr.splitlines()) == 1 and "too large" in done.stderr, done.stderr
        after = {path.name: path.read_bytes() for path in (output / "checkpoint-2").iterdir()}
        assert before == after
        assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_checkpoints_that_cannot_be_used_are_clear_errors():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        text = run_ok("train_dreambooth_lora", *arguments(output, "--resume_from_checkpoint", "latest", steps=2))
        assert "no checkpoint yet" in text
        done = run("train_dreambooth_lora", *arguments(output, steps=2))
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done
        assert "those of an earlier run" in done.stderr and "--overwrite_output_dir" in done.stderr, done.stderr
        text = run_ok(
            "train_dreambooth_lora",
            *arguments(output, "--resume_from_checkpoint", "latest", "--noise_offset", 0.2, steps=2),
        )
        assert "made with other settings than noise_offset = 0.2, namely 0.05" in text, text
        assert text.count("made with") == 1, text
        fewer = pathlib.Path(folder) / "fewer"
        shutil.copytree(SUBJECT, fewer)
        next(fewer.glob("*.png")).unlink()
        text = run_ok(
            "train_dreambooth_lora",
            *arguments(output, "--resume_from_checkpoint", "latest", "--instance_data_dir", fewer, steps=2),
        )
        assert "made with another set of pictures (fingerprint" in text and text.count("made with") == 1, text

        def fails(expected, *more):
            done = run("train_dreambooth_lora", *arguments(output, *more))
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done
            assert expected in done.stderr, done.stderr

        fails("the output folder has checkpoint-2", "--resume_from_checkpoint", "checkpoint-9")
        fails("another --optimizer", "--resume_from_checkpoint", "latest", "--optimizer", "lion")
        fails("rank", "--resume_from_checkpoint", "latest", "--rank", 2)
        shutil.copytree(output / "checkpoint-2", output / "checkpoint-3")
        (output / "checkpoint-3/training_state.safetensors").unlink()
        fails("training_state.safetensors", "--resume_from_checkpoint", "latest")
        state = output / "checkpoint-2/training_state.safetensors"
        state.write_bytes(state.read_bytes()[:-100])
        fails("cut off", "--resume_from_checkpoint", "checkpoint-2")


def test_a_run_that_begins_anew_keeps_nothing_of_an_earlier_one():
    with scratch() as folder:
        output, fresh = pathlib.Path(folder) / "out", pathlib.Path(folder) / "fresh"
        run_ok("train_dreambooth_lora", *arguments(output, steps=4, every=1))
        more = ["--checkpoints_total_limit", 1, "--noise_offset", 0.3]
        run_ok("train_dreambooth_lora", *arguments(output, *more, "--overwrite_output_dir", steps=2, every=1))
        run_ok("train_dreambooth_lora", *arguments(fresh, *more, steps=2, every=1))
        assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-2"]
        assert final_bytes(output) == final_bytes(fresh)
        text = run_ok("train_dreambooth_lora", *arguments(output, *more, "--resume_from_checkpoint", "latest", steps=2))
        assert "at step 2 of 2" in text and "made with" not in text, text


def test_two_runs_do_not_share_an_output_folder():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        first = subprocess.Popen(
            [BIN / "train_dreambooth_lora", *arguments(output, steps=1000)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        start = time.time()
        while steps_in(output) < 1 and first.poll() is None and time.time() - start < 300:
            time.sleep(0.01)
        done = run("train_dreambooth_lora", *arguments(output, "--overwrite_output_dir"))
        first.kill()
        first.communicate()
        assert done.returncode == 1 and "another run is at work" in done.stderr, done
        assert steps_in(output) >= 1, "the first run's log was removed"


def test_an_output_folder_that_cannot_be_written_fails_at_once():
    done = run("train_dreambooth_lora", *arguments("/proc/lora"))
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done
    assert "'/proc/lora'" in done.stderr and "Steps" not in done.stdout


def checkpoints(output):
    return sorted(path.name for path in output.iterdir() if "checkpoint-" in path.name)


def test_latest_is_of_the_course_that_the_run_took_last():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        run_ok("train_dreambooth_lora", *arguments(output, steps=6))
        other = ["--learning_rate", 0.01, "--resume_from_checkpoint"]
        text = run_ok("train_dreambooth_lora", *arguments(output, *other, "checkpoint-2", steps=4))
        said = "2 later checkpoints of this run are called left-checkpoint-4, left-checkpoint-6 from now on"
        assert text.count(said) == 1, text
        now = ["checkpoint-2", "checkpoint-4", "left-checkpoint-4", "left-checkpoint-6"]
        assert checkpoints(output) == now, checkpoints(output)
        text = run_ok("train_dreambooth_lora", *arguments(output, *other, "latest", steps=4))
        assert "at step 4 of 4" in text and "left-checkpoint" not in text and "made with" not in text, text
        # Nothing of it is lost, and a name that is taken is not taken again.
        text = run_ok("train_dreambooth_lora", *arguments(output, *other, "checkpoint-2", steps=4))
        assert "1 later checkpoint of this run is called left-checkpoint-4-2 from now on" in text, text
        text = run_ok("train_dreambooth_lora", *arguments(output, "--resume_from_checkpoint", "left-checkpoint-6"))
        assert "at step 6 of 10" in text, text
        run_ok("train_dreambooth_lora", *arguments(output, "--overwrite_output_dir", steps=2))
        assert checkpoints(output) == ["checkpoint-2"], checkpoints(output)


def test_checkpoints_of_another_run_are_let_be():
    with scratch() as folder:
        output, other = pathlib.Path(folder) / "out", pathlib.Path(folder) / "other"
        run_ok("train_dreambooth_lora", *arguments(output, steps=2, every=1))
        run_ok("train_dreambooth_lora", *arguments(other, "--noise_offset", 0.3, steps=4))
        shutil.copytree(other / "checkpoint-4", output / "checkpoint-9")
        shutil.copytree(other / "checkpoint-2", output / "checkpoint-0")
        more = ["--resume_from_checkpoint", "checkpoint-2", "--checkpoints_total_limit", 1]
        text = run_ok("train_dreambooth_lora", *arguments(output, *more, steps=3, every=1))
        assert "checkpoint-9' is no checkpoint of this run and is later than step 2" in text, text
        assert checkpoints(output) == ["checkpoint-0", "checkpoint-3", "checkpoint-9"], checkpoints(output)
        assert (output / "checkpoint-9" / FILES[0]).read_bytes() == (other / FILES[0]).read_bytes()


def changed(path, change):
    """Rewrites a safetensors file whose header and data a function changes."""
    header, data = read_safetensors(path)
    data = bytearray(data)
    change(header, data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_a_resume_with_another_model_is_noticed():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        run_ok("train_dreambooth_lora", *arguments(folder / "out", steps=2))
        go_on = ["--resume_from_checkpoint", "latest", "--pretrained_model_name_or_path"]
        for part, name in [("unet", "base model"), ("text_encoder", "base model"), ("vae", "autoencoder")]:
            model = folder / part
            shutil.copytree(MODEL, model)

            def nudge(header, data):
                first = min(v["data_offsets"][0] for k, v in header.items() if k != "__metadata__")
                data[first + 1] ^= 1

            changed(next((model / part).glob("*.safetensors")), nudge)
            text = run_ok("train_dreambooth_lora", *arguments(folder / "out", *go_on, model, steps=2))
            assert f"made with another {name} (fingerprint" in text and text.count("made with") == 1, (part, text)
        text = run_ok("train_dreambooth_lora", *arguments(folder / "out", *go_on, MODEL, steps=2))
        assert "made with" not in text, text


def test_a_resume_with_another_file_to_start_from_is_noticed():
    with scratch() as folder:
        folder = pathlib.Path(folder)
        for name, seed in [("a", 5), ("b", 6)]:
            run_ok("train_dreambooth_lora", *arguments(folder / name, "--seed", seed, steps=1))
        start = folder / "start.safetensors"
        shutil.copy(folder / "a" / FILES[0], start)
        run_ok("train_dreambooth_lora", *arguments(folder / "out", "--init_from", start, steps=2))
        more = ["--init_from", start, "--resume_from_checkpoint", "latest"]
        assert "made with" not in run_ok("train_dreambooth_lora", *arguments(folder / "out", *more, steps=2))
        shutil.copy(folder / "b" / FILES[0], start)
        text = run_ok("train_dreambooth_lora", *arguments(folder / "out", *more, steps=2))
        assert "made with another --init_from file (fingerprint" in text and text.count("made with") == 1, text


def test_counters_that_nothing_reaches_are_one_clear_line():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        run_ok("train_dreambooth_lora", *arguments(output, steps=2))
        state = output / "checkpoint-2/training_state.safetensors"
        before = state.read_bytes()
        for place, number in [(0, 2**63 - 1), (0, -(2**63)), (0, 2**41), (1, 2**63 - 1), (2, 2**63 - 1), (2, -(2**63))]:
            state.write_bytes(before)

            def count(header, data, place=place, number=number):
                start = header["steps"]["data_offsets"][0] + 8 * place
                data[start : start + 8] = struct.pack("<q", number)

            changed(state, count)
            done = run("train_dreambooth_lora", *arguments(output, "--resume_from_checkpoint", "latest"))
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, (place, number, done)
            assert "the checkpoint is damaged" in done.stderr and str(number) in done.stderr, done.stderr


def test_a_damaged_state_is_one_line_that_names_the_checkpoint():
    with scratch() as folder:
        output = pathlib.Path(folder) / "out"
        run_ok("train_dreambooth_lora", *arguments(output, "--use_ema", steps=2, every=1))
        checkpoint = output / "checkpoint-1"

        def no_numbers(name):
            def change(header, data):
                begin, end = header[name]["data_offsets"]
                data[begin:end] = b"\xff" * (end - begin)

            return change

        def other_shape(header, data):
            header["steps"]["shape"] = [1, *header["steps"]["shape"]]

        for file, change in [
            ("training_state.safetensors", no_numbers("average.values")),
            ("training_state.safetensors", no_numbers("average.trained")),
            ("training_state.safetensors", no_numbers("optimizer.0.first_moment")),
            ("training_state.safetensors", other_shape),
            ("training_state.safetensors", lambda header, data: data.extend(b"more")),
        ]:
            path = checkpoint / file
            before = path.read_bytes()
            changed(path, change)
            more = ["--use_ema", "--resume_from_checkpoint", checkpoint]
            done = run("train_dreambooth_lora", *arguments(output, *more, every=1))
            assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, (file, done)
            assert str(checkpoint) in done.stderr and "--allow_trailing" not in done.stderr, done.stderr
            assert "Scalar" not in done.stderr and (output / "checkpoint-2").is_dir(), done.stderr
            path.write_bytes(before)


main(globals())

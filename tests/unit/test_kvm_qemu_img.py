"""What qemu-img is told, and what is made of what it says."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from hypervisors.contract import ImageLocked, ImageSpec, OperationUnsupported, Source
from hypervisors.qemu.nodes import Node, own_node, raw_node, source_node
from hypervisors.qemu.qemu_img import QemuImg, direct_io_works, explained
from stores.contract import HttpUrl, Kind, LocalPath, NbdExport, NetworkImage, ObjectInfo, Presentation, Silent
from stores.errors import DeviceFault, IntegrityError, NoSpace
from stores.to import ImageFormat, ProvisioningType
from stores.tools.process import ToolFailed, ToolLimits, ToolResult, ToolRunner
from tests.doubles.mounts import mounted_tmpfs

INFO = ObjectInfo("object", 1)


def source(presentation: Presentation, image_format: ImageFormat | None, *backing: Source) -> Source:
    return Source(presentation, ImageSpec(image_format), backing)


# -------------------------------------------------------------------------------------------------------------- nodes


def test_every_parent_is_explicit() -> None:
    """Also that there is none: otherwise qemu would open what the file names."""
    base = source(LocalPath(Path("/p/base"), INFO), ImageFormat.RAW)
    middle = source(LocalPath(Path("/p/middle"), INFO), ImageFormat.QCOW2)
    top = source(LocalPath(Path("/p/top"), INFO), ImageFormat.QCOW2, middle, base)
    assert source_node(top).options == {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": "/p/top"},
        "backing": {
            "driver": "qcow2",
            "file": {"driver": "file", "filename": "/p/middle"},
            "backing": {"driver": "raw", "file": {"driver": "file", "filename": "/p/base"}},
        },
    }
    assert own_node(top).options["backing"] is None


def test_a_vhd_has_the_size_of_its_footer() -> None:
    node = source_node(source(NbdExport(Path("/run/x.sock"), "", INFO), ImageFormat.VHD)).options
    assert node["driver"] == "vpc"
    assert node["force_size_calc"] == "current_size"
    assert node["file"] == {"driver": "nbd", "server": {"type": "unix", "path": "/run/x.sock"}, "export": ""}


def test_other_presentations() -> None:
    url = source_node(source(HttpUrl("https://h/x.raw", INFO), ImageFormat.RAW)).options["file"]
    assert url == {"driver": "https", "url": "https://h/x.raw", "readahead": 256 * 1024}
    rbd = NetworkImage({"driver": "rbd", "pool": "p", "image": "i"}, INFO, Kind.RBD_IMAGE)
    assert source_node(source(rbd, ImageFormat.RAW)).options["file"] == {"driver": "rbd", "pool": "p", "image": "i"}


def test_a_format_is_never_left_to_qemu() -> None:
    local = LocalPath(Path("/p/x"), INFO)
    with pytest.raises(ValueError, match="format"):
        source_node(source(local, None))
    with pytest.raises(OperationUnsupported, match="OVA"):
        source_node(source(local, ImageFormat.OVA))


# ------------------------------------------------------------------------------------------------------------ command


_LIMITS = ToolLimits()


class Recorder(ToolRunner):
    """Runs nothing."""

    def __init__(self, stdout: bytes = b"", failure: ToolFailed | None = None) -> None:
        self.argv: list[str] = []
        self._stdout = stdout
        self._failure = failure

    async def run(
        self,
        argv: Sequence[str],
        *,
        deadline_s: float | None,
        limits: ToolLimits = _LIMITS,
        on_progress: Callable[[float], None] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> ToolResult:
        self.argv = list(argv)
        if self._failure is not None:
            raise self._failure
        return ToolResult(self._stdout, b"")


NODE = Node({"driver": "raw", "file": {"driver": "file", "filename": "/p/--evil,x"}})


@pytest.mark.parametrize("direct", [True, False])
async def test_convert(direct: bool) -> None:
    runner = Recorder()
    await QemuImg(runner).convert(
        NODE,
        Path("/p/target"),
        ImageFormat.QCOW2,
        size=10,
        direct_source=direct,
        direct_target=direct,
        progress=Silent(),
    )
    cache = "none" if direct else "writeback"
    assert runner.argv[:-2] == f"qemu-img convert -p -W -m 8 -T {cache} -t {cache} -O qcow2".split()
    assert json.loads(runner.argv[-2].removeprefix("json:")) == NODE.options
    assert runner.argv[-1] == "/p/target"


@pytest.mark.parametrize("blank", [True, False])
async def test_convert_into_a_device(blank: bool) -> None:
    """Nothing is made there, and what its options name by an id is told once."""
    runner = Recorder()
    secret = "secret,id=s,file=/run/s"
    lun = NetworkImage({"driver": "iscsi", "password-secret": "s"}, INFO, Kind.ISCSI_LUN, (secret,))
    both = raw_node(lun, offset=512)
    await QemuImg(runner).convert_into(NODE, both, size=10, direct_source=True, blank=blank, progress=Silent())
    zero = ["--target-is-zero"] if blank else []
    options = ["qemu-img", "convert", "-p", "-W", "-m", "8", "-T", "none", "-n", *zero, "-t", "none", "-O", "raw"]
    assert runner.argv[:-2] == [*options, "--object", secret]
    assert json.loads(runner.argv[-2].removeprefix("json:")) == NODE.options
    assert json.loads(runner.argv[-1].removeprefix("json:")) == {"driver": "raw", "offset": 512, "file": lun.options}


def test_a_secret_that_two_layers_name_is_told_once() -> None:
    lun = NetworkImage({"driver": "iscsi"}, INFO, Kind.ISCSI_LUN, ("secret,id=s,file=/run/s",))
    below = source(lun, ImageFormat.RAW)
    assert source_node(source(lun, ImageFormat.RAW, below)).arguments()[:-1] == ["--object", *lun.objects]


@pytest.mark.parametrize(
    ("image_format", "provisioning", "option"),
    [
        (ImageFormat.QCOW2, ProvisioningType.THIN, "preallocation=off"),
        (ImageFormat.QCOW2, ProvisioningType.SPARSE, "preallocation=metadata"),
        (ImageFormat.QCOW2, ProvisioningType.FAT, "preallocation=falloc"),
        (ImageFormat.RAW, ProvisioningType.SPARSE, "preallocation=off"),
        (ImageFormat.RAW, ProvisioningType.FAT, "preallocation=falloc"),
    ],
)
async def test_create(image_format: ImageFormat, provisioning: ProvisioningType, option: str) -> None:
    runner = Recorder()
    await QemuImg(runner).create(Path("/p/v"), image_format, 10, provisioning)
    assert runner.argv == ["qemu-img", "create", "-q", "-f", image_format.lower(), "-o", option, "/p/v", "10"]


async def test_an_existing_image_is_never_named_without_its_driver() -> None:
    """Each of these opens one: it gets a json node, and nowhere a bare path."""
    calls: list[tuple[bytes, Callable[[QemuImg], Awaitable[object]]]] = [
        (b"", lambda tool: tool.check(NODE)),
        (b"", lambda tool: tool.resize(NODE, 20, shrink=False)),
        (b'{"virtual-size": 1, "actual-size": 1}', lambda tool: tool.sizes(NODE)),
        (b'{"required": 1, "fully-allocated": 1}', lambda tool: tool.required(NODE, ImageFormat.RAW)),
    ]
    for stdout, call in calls:
        runner = Recorder(stdout)
        await call(QemuImg(runner))
        assert sum(word.startswith("json:") for word in runner.argv) == 1
        assert not any(word.startswith("/") for word in runner.argv)
        assert "--shrink" not in runner.argv


# ----------------------------------------------------------------------------------------------------------- failures


def failed(text: str, exit_code: int = 1) -> ToolFailed:
    return ToolFailed(f"qemu-img ended: {text}", tool="qemu-img", exit_code=exit_code, stderr=text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("qemu-img: error while writing at byte 0: No space left on device", NoSpace),
        ("qemu-img: Disk quota exceeded", NoSpace),
        ("qemu-img: error while reading at byte 0: Input/output error", DeviceFault),
        ("qemu-img: Could not open: Read-only file system", DeviceFault),
        ('qemu-img: Failed to get "write" lock\nIs another process using the image?', ImageLocked),
        ('qemu-img: Failed to get shared "write" lock', ImageLocked),
        ("qemu-img: Something else", ToolFailed),
    ],
)
def test_what_qemu_img_says(text: str, kind: type[Exception]) -> None:
    assert type(explained(failed(text))) is kind


async def test_leaked_clusters_are_no_fault() -> None:
    await QemuImg(Recorder(failure=failed("2 leaked clusters", 3))).check(NODE)
    with pytest.raises(IntegrityError):
        await QemuImg(Recorder(failure=failed("ERROR cluster 3 refcount=0", 2))).check(NODE)
    with pytest.raises(DeviceFault):
        await QemuImg(Recorder(failure=failed("Input/output error", 1))).check(NODE)


def test_direct_io_is_tried(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    assert direct_io_works(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        direct_io_works(tmp_path / "missing")
    with mounted_tmpfs(tmp_path / "m") as mounted:
        (mounted / "x").touch()
        expected = True
        try:
            os.close(os.open(mounted / "x", os.O_RDONLY | os.O_DIRECT))
        except OSError:
            expected = False  # kernels before 6.6
        assert direct_io_works(mounted / "x") is expected

"""What the scripts about disks and files do. Each takes the script's argument and gives its result."""

from __future__ import annotations

import os
import shutil
from typing import Any

from tests.doubles.hyperv.model import COMPLETED, FAILED, RUNNING, STOPPING, TERMINATED, Job, Model
from tests.doubles.hyperv.vhds import E_NOT_FOUND, Vhd, VhdError, is_sparse

Argument = dict[str, Any]


class DiskCommands:
    def __init__(self, model: Model) -> None:
        self._model = model
        self._vhds = model.vhds
        self._local = model.volumes.local

    # ------------------------------------------------------------------------------------------------------- disks

    async def get_vhd(self, told: Argument) -> Any:
        return await self._facts(await self._vhds.get(told["path"]))

    async def test_vhd(self, told: Argument) -> Any:
        if not self._local(told["path"]).is_file():
            raise VhdError("PathNotFound,Microsoft.PowerShell.Commands.GetItemCommand", E_NOT_FOUND, told["path"])
        try:
            await self._vhds.chain(told["path"])
        except VhdError as error:
            problem = {"id": error.id, "hresult": signed(error.hresult), "message": str(error)}
            return {"valid": False, "problem": problem}
        return {"valid": True, "problem": None}

    async def new_vhd(self, told: Argument) -> Any:
        path, partial, record = told["path"], told["partial"], self._model.records.get(told["operation"])
        if record is None:
            self._need_free(path)
            self._model.records[told["operation"]] = {"kind": "disk", "path": path, "partial": partial, "job": None}
        elif record["path"] != path:
            raise thrown("OperationReused")
        if not self._local(path).exists():
            self._local(partial).unlink(missing_ok=True)
            if not self._local(partial).parent.is_dir():
                raise VhdError("OperationFailed,Microsoft.Vhd.PowerShell.Cmdlets.NewVhd", 0x80070003, "no such folder")
            if told["kind"] == "Differencing":
                await self._vhds.create_child(partial, told["parent"])
            else:
                self._vhds.create(
                    partial, told["size"], kind=told["kind"], block=told["block_size"], sector=told["sector_size"]
                )
            os.rename(self._local(partial), self._local(path))
        return await self._facts(await self._vhds.get(path))

    async def resize_vhd(self, told: Argument) -> Any:
        if (await self._vhds.get(told["path"])).image.virtual_size != told["size"]:
            await self._model.need_unused(told["path"], "ResizeVhd")
            await self._vhds.resize(told["path"], told["size"])
        return await self.get_vhd(told)

    async def set_vhd_parent(self, told: Argument) -> Any:
        await self._model.need_unused(told["path"], "SetVhd")
        await self._vhds.set_parent(told["path"], told["parent"], ignore_mismatch=told["ignore_mismatch"])
        return await self.get_vhd(told)

    async def _facts(self, vhd: Vhd) -> Any:
        return {
            "path": vhd.path,
            "format": "VHDX",
            "kind": vhd.kind,
            "size": vhd.image.virtual_size,
            "file_size": vhd.file_size,
            "minimum_size": None,
            "block_size": 0 if vhd.kind == "Fixed" else vhd.block,
            "sector_size": vhd.image.sector,
            "parent": vhd.parent or "",
            "disk_id": str(vhd.image.disk_id).upper(),
            "attached": await self._model.used_by(vhd.path) is not None,
        }

    # -------------------------------------------------------------------------------------------------- operations

    async def start_convert_vhd(self, told: Argument) -> Any:
        source, path, partial = told["source"], told["destination"], told["partial"]
        record = self._model.records.get(told["operation"])
        if record is None:
            self._need_free(path)
            record = {
                "kind": "convert",
                "source": source,
                "path": path,
                "partial": partial,
                "job": None,
                "ended": False,
            }
            self._model.records[told["operation"]] = record
        elif (record["kind"], record["path"]) != ("convert", path):
            raise thrown("OperationReused")
        if not record["ended"] and self._job(record) is None and not self._local(path).exists():
            self._local(partial).unlink(missing_ok=True)
            await self._model.need_unused(source, "ConvertVhd")
            await self._vhds.get(source)
            self._local(partial).write_bytes(b"half of it")

            async def work() -> None:
                await self._vhds.convert(source, partial, told["kind"], told["block_size"])

            record["job"] = self._model.start_job(work, source, partial).id
        return {"started": True}

    async def start_merge_vhd(self, told: Argument) -> Any:
        path, destination = told["path"], told["destination"]
        record = self._model.records.get(told["operation"])
        again = record is not None
        if record is None:
            disk = await self._vhds.get(path)
            if disk.kind != "Differencing":
                raise thrown("NotDifferencing")
            record = {
                "kind": "merge", "source": path, "path": destination, "partial": None, "parent": disk.parent,
                "job": None, "ended": False,
            }  # fmt: skip
            self._model.records[told["operation"]] = record
        elif (record["kind"], record["source"]) != ("merge", path):
            raise thrown("OperationReused")
        if not record["ended"] and self._job(record) is None:
            if again:
                await self._vhds.set_parent(path, record["parent"], ignore_mismatch=True)
            for file in await self._model.files_of(path):
                await self._model.need_unused(file, "MergeVhd")

            async def work() -> None:
                await self._vhds.merge(path, destination)

            record["job"] = self._model.start_job(work, path, destination).id
        return {"started": True}

    async def get_job(self, told: Argument) -> Any:
        record = self._model.records.get(told["operation"])
        if record is None:
            return _state("unknown")
        job = self._job(record)
        if record["ended"] or (record["kind"] == "convert" and self._local(record["path"]).exists()):
            return _state("completed", 100)
        if job is None:
            return _state("lost")
        if job.state == COMPLETED:
            if record["kind"] == "convert":
                os.rename(self._local(record["partial"]), self._local(record["path"]))
            record["ended"] = True
            return _state("completed", 100)
        if job.state in (TERMINATED, FAILED):
            return _state("failed", job.percent, job.hresult)
        return _state("running", job.percent)

    async def remove_operation(self, told: Argument) -> Any:
        record = self._model.records.get(told["operation"])
        job = self._job(record) if record is not None else None
        if job is not None and job.state in (RUNNING, STOPPING):
            if job.state == RUNNING:
                self._model.stop_job(job)
            return {"gone": False}
        if record is not None and record["partial"] is not None:
            self._local(record["partial"]).unlink(missing_ok=True)
            if told["discard"]:
                self._local(record["path"]).unlink(missing_ok=True)
        self._model.records.pop(told["operation"], None)
        return {"gone": True}

    async def get_operations(self, told: Argument) -> Any:
        return {"operations": sorted(self._model.records)}

    def _job(self, record: dict[str, Any]) -> Job | None:
        return self._model.jobs.get(record["job"]) if record["job"] is not None else None

    def _need_free(self, path: str) -> None:
        if self._local(path).exists():
            raise thrown("DiskExists")

    # ------------------------------------------------------------------------------------------------------- files

    async def get_file(self, told: Argument) -> Any:
        file = self._local(told["path"])
        there = file.is_file()
        usage = shutil.disk_usage(file.parent) if file.parent.is_dir() else None
        return {
            "exists": there,
            "size": file.stat().st_size if there else 0,
            "sparse": there and is_sparse(file),
            "compressed": False,
            "encrypted": False,
            "read_only": there and not file.stat().st_mode & 0o200,
            "free": usage.free if usage else None,
            "total": usage.total if usage else None,
        }

    async def delete_file(self, told: Argument) -> Any:
        file = self._local(told["path"])
        if not file.is_file():
            return {"deleted": False}
        if await self._model.used_by(told["path"]) is not None:
            raise VhdError(
                "RemoveFileSystemItemIOError,Microsoft.PowerShell.Commands.RemoveItemCommand", 0x80070020, told["path"]
            )
        file.unlink()
        return {"deleted": True}


def thrown(name: str) -> VhdError:
    """What `throw` in a script of ours makes: its text is the identifier, COR_E_RUNTIMEEXCEPTION the number."""
    return VhdError(f"StorageAgent.{name}", 0x80131501, f"StorageAgent.{name}")


def _state(name: str, percent: int = 0, hresult: int = 0) -> Any:
    return {"state": name, "percent": percent, "hresult": hresult}


def signed(number: int) -> int:
    """As .NET has HResult."""
    return number - (1 << 32) if number >= 1 << 31 else number

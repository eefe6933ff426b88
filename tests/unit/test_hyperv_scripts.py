"""The PowerShell of Hyper-V, read with PowerShell's grammar: whole, of one shape, and of nothing but what is allowed here.

That it does on Windows what it should, this cannot show: `tests/windows` is for people who have one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tree_sitter_powershell
from tree_sitter import Language, Node, Parser

from hypervisors.hyperv import texts

PARSER = Parser(Language(tree_sitter_powershell.language()))
each_script = pytest.mark.parametrize("name", sorted(texts.names()))

HEAD = """param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
"""
TAIL = """    @{ ok = $true; result = $result } | ConvertTo-Json -Compress -Depth 8
}
catch {
    @{
        ok = $false
        id = $_.FullyQualifiedErrorId
        hresult = $_.Exception.GetBaseException().HResult
        category = [string]$_.CategoryInfo.Category
        message = $_.Exception.Message
    } | ConvertTo-Json -Compress
}
"""
CMDLETS = {
    "Add-VMDvdDrive", "Add-VMHardDiskDrive", "Checkpoint-VM", "Get-VHD", "Get-VM", "Get-VMDvdDrive",
    "Get-VMHardDiskDrive", "Get-VMHost", "Get-VMSnapshot", "New-VHD", "Remove-VMHardDiskDrive", "Remove-VMSnapshot",
    "Resize-VHD", "Restore-VMSnapshot", "Set-VHD", "Set-VMDvdDrive", "Test-VHD",
    "Get-CimClass", "Get-CimInstance", "Invoke-CimMethod", "New-CimInstance",
    "Get-ChildItem", "Get-Content", "Get-Item", "Get-Module", "Get-Volume", "Join-Path", "Move-Item", "New-Item",
    "Remove-Item", "Set-Content", "Split-Path", "Test-Path",
    "ConvertFrom-Json", "ConvertTo-Json", "ForEach-Object", "Select-Object", "Set-StrictMode", "Sort-Object", "Where-Object",
}  # fmt: skip
TYPES = {
    "bool", "pscustomobject", "string", "uint16", "uint32", "System.IO.FileAttributes", "System.Text.Encoding",
    "Microsoft.Management.Infrastructure.Serialization.CimSerializer",
    "Microsoft.Management.Infrastructure.Serialization.InstanceSerializationOptions",
}  # fmt: skip
METHODS = {"Create", "GetBaseException", "GetString", "Serialize"}
CIM_METHODS = {"ConvertVirtualHardDisk", "MergeVirtualHardDisk", "RequestStateChange"}
WITH_LITERAL_PATH = {"Get-ChildItem", "Get-Content", "Get-Item", "Move-Item", "Remove-Item", "Set-Content", "Test-Path"}


def nodes(text: str) -> Iterator[Node]:
    pending = [PARSER.parse(text.encode()).root_node]
    while pending:
        node = pending.pop()
        yield node
        pending += node.children


def of_type(text: str, *types: str) -> list[str]:
    return [shown(node) for node in nodes(text) if node.type in types]


def shown(node: Node) -> str:
    assert node.text is not None
    return node.text.decode()


def problems(text: str) -> list[str]:
    """What in a script is not allowed."""
    found = [
        f"is no PowerShell: {shown(node)[:40]!r}" for node in nodes(text) if node.type == "ERROR" or node.is_missing
    ]
    found += [f"calls {name}" for name in of_type(text, "command_name") if name not in CMDLETS]
    found += [f"computes what to call: {shown(node)}" for node in nodes(text) if node.type in COMPUTED_CALLS]
    found += [f"names the type {name}" for name in of_type(text, "type_literal") if name.strip("[]") not in TYPES]
    found += [f"puts text together: {text}" for text in of_type(text, "expandable_string_literal", *HERE_STRINGS)]
    found += [f"formats text: {shown(node)}" for node in nodes(text) if _formats(node)]
    for node in nodes(text):
        if node.type == "invokation_expression":
            names = [shown(child) for child in node.children if child.type == "member_name"]
            found += [f"calls the method {name}" for name in names if name not in METHODS]
            found += [] if names else ["calls a method that is not named"]
        if node.type == "param_block" and node.parent is not None and node.parent.type != "program":
            found.append("has another param block")
        if node.type in ("function_statement", "class_statement", "redirection", "trap_statement"):
            found.append(f"has a {node.type}")
        if node.type == "command":
            found += _unescaped_path(shown(node))
    return found


COMPUTED_CALLS = {"command_invokation_operator", "command_name_expr", "path_command_name", "foreach_command"}
HERE_STRINGS = {"expandable_here_string_literal", "verbatim_here_string_characters"}


def _formats(node: Node) -> bool:
    """`-f`, `+` and `-join`, by their operators."""
    return not node.is_named and shown(node).lower() in ("-f", "+", "-join", "-replace", "-split")


def _unescaped_path(command: str) -> list[str]:
    """Brackets in a file's name are no pattern."""
    words = command.split()
    return [f"takes a path as a pattern: {command}"] if words[0] in WITH_LITERAL_PATH and "-Path" in words else []


@each_script
def test_a_script_has_nothing_in_it_that_is_not_allowed(name: str) -> None:
    assert problems(texts.text(name)) == []


@each_script
def test_a_script_has_the_shape_of_all(name: str) -> None:
    """Comments, one parameter, its errors stop it, and it answers in JSON whatever happens."""
    text = texts.text(name)
    comment, _, rest = text.partition("param(")
    assert comment.startswith("# ")
    assert all(line.startswith("# ") for line in comment.splitlines())
    assert f"param({rest}".startswith(HEAD)
    assert rest.endswith(TAIL)
    assert text.count("param(") == 1
    assert text.isascii()


@each_script
def test_a_script_calls_only_methods_of_the_host_that_are_known(name: str) -> None:
    text = texts.text(name)
    words = text.replace("\n", " ").split()
    named = {words[number + 1] for number, word in enumerate(words) if word == "-MethodName"}
    assert named <= CIM_METHODS
    assert text.count("Invoke-CimMethod") == sum(word == "-MethodName" for word in words)


def test_everything_that_is_allowed_is_needed() -> None:
    every = [texts.text(name) for name in texts.names()]
    assert {name for text in every for name in of_type(text, "command_name")} == CMDLETS
    assert {name.strip("[]") for text in every for name in of_type(text, "type_literal")} == TYPES


@pytest.mark.parametrize(
    "line",
    [
        "Invoke-Expression $argument.path",
        "iex 'Get-VM'",
        "& $argument.command",
        "& 'Get-VM'",
        ". $argument.path",
        "powershell.exe -Command Get-VM",
        "$x = \"Get-VHD $($argument.path)\"",
        "$x = \"Get-VHD $Json\"",
        "$x = 'Get-VHD {0}' -f $argument.path",
        "$x = 'Get-VHD ' + $argument.path",
        "$x = 'a', 'b' -join ' '",
        "[scriptblock]::Create($Json).Invoke()",
        "$ExecutionContext.InvokeCommand.InvokeScript($Json)",
        "Invoke-Command -ScriptBlock { Get-VM }",
        "Start-Process -FilePath cmd.exe",
        "function f { Get-VM }",
        "Get-VM > C:\\x",
        "Remove-Item -Path $argument.path",
        "$x = (",
        "$x = @\"\n$Json\n\"@",
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_found(line: str) -> None:
    assert problems(HEAD + "    " + line + "\n    $result = $null\n" + TAIL) != []


def test_the_kit_for_windows_is_powershell_and_runs_every_script() -> None:
    (kit,) = (Path(__file__).parents[1] / "windows").glob("*.Tests.ps1")
    text = kit.read_text(encoding="utf-8")
    assert [shown(node)[:40] for node in nodes(text) if node.type == "ERROR" or node.is_missing] == []
    assert {name for name in texts.names() if f"'{name}'" not in text} == set()


def test_a_name_that_is_no_script() -> None:
    with pytest.raises(KeyError):
        texts.text("../endpoint")

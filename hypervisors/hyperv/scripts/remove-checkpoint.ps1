# Removes a checkpoint; the host merges its disks afterwards: see `get-checkpoints`. { vm, checkpoint }
# checkpoint: its id. removed: false where it is gone already.
param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
    $machines = @(Get-VM | Where-Object { $_.Name -eq $argument.vm })
    if ($machines.Count -eq 0) { throw 'StorageAgent.NoSuchMachine' }
    if ($machines.Count -gt 1) { throw 'StorageAgent.MachineNotUnique' }
    $machine = $machines[0]
    $found = @(Get-VMSnapshot -VM $machine | Where-Object { [string]$_.Id -eq $argument.checkpoint })
    foreach ($checkpoint in $found) { Remove-VMSnapshot -VMSnapshot $checkpoint -Confirm:$false }
    $result = @{ removed = $found.Count -gt 0 }
    @{ ok = $true; result = $result } | ConvertTo-Json -Compress -Depth 8
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

# Takes a machine that is off back to a checkpoint. { vm, checkpoint } Once more changes nothing, as long as it stays off.
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
    if ([string]$machine.State -ne 'Off') { throw 'StorageAgent.MachineNotOff' }
    $found = @(Get-VMSnapshot -VM $machine | Where-Object { [string]$_.Id -eq $argument.checkpoint })
    if ($found.Count -eq 0) { throw 'StorageAgent.NoSuchCheckpoint' }
    Restore-VMSnapshot -VMSnapshot $found[0] -Confirm:$false
    $result = @{ restored = $true }
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

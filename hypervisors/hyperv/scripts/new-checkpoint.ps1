# Makes a checkpoint of a machine. { vm, name } The name carries the operation: one of that name that is there already is it.
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
    $found = @(Get-VMSnapshot -VM $machine | Where-Object { $_.Name -eq $argument.name })
    if ($found.Count -eq 0) { $found = @(Checkpoint-VM -VM $machine -SnapshotName $argument.name -Passthru) }
    $result = $found[0] | ForEach-Object {
        $checkpoint = $_
        $disks = @(Get-VMHardDiskDrive -VMSnapshot $checkpoint | ForEach-Object {
            @{
                controller = [string]$_.ControllerType
                number = $_.ControllerNumber
                location = $_.ControllerLocation
                path = $_.Path
            }
        })
        @{
            id = [string]$checkpoint.Id
            name = $checkpoint.Name
            parent = [string]$checkpoint.ParentSnapshotId
            disks = $disks
        }
    }
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

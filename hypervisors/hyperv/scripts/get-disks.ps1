# The disks and DVD drives of a machine. { vm }
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
    $disks = @(Get-VMHardDiskDrive -VM $machine | ForEach-Object {
        @{
            controller = [string]$_.ControllerType
            number = $_.ControllerNumber
            location = $_.ControllerLocation
            path = $_.Path
        }
    })
    $drives = @(Get-VMDvdDrive -VM $machine | ForEach-Object {
        @{
            controller = [string]$_.ControllerType
            number = $_.ControllerNumber
            location = $_.ControllerLocation
            path = $_.Path
        }
    })
    $result = @{ state = [string]$machine.State; generation = $machine.Generation; disks = $disks; dvd_drives = $drives }
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

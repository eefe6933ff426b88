# Attaches a disk to a machine. { vm, path, controller, number, location }
# controller: SCSI or IDE. number and location: null for the first that is free. Attached already, it stays where it is.
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
    $found = @(Get-VMHardDiskDrive -VM $machine | Where-Object { $_.Path -eq $argument.path })
    if ($found.Count -gt 0) { $drive = $found[0] }
    elseif ($null -eq $argument.location) {
        $drive = Add-VMHardDiskDrive -VM $machine -Path $argument.path -ControllerType $argument.controller -Passthru
    }
    else {
        $place = @{ ControllerNumber = $argument.number; ControllerLocation = $argument.location }
        $drive = Add-VMHardDiskDrive -VM $machine -Path $argument.path -ControllerType $argument.controller @place -Passthru
    }
    $result = @{
        controller = [string]$drive.ControllerType
        number = $drive.ControllerNumber
        location = $drive.ControllerLocation
        path = $drive.Path
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

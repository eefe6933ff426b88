# Puts an ISO into a machine's first DVD drive, which is added where there is none. { vm, path }
# path: null takes out what is in it.
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
    $drives = @(Get-VMDvdDrive -VM $machine)
    if ($drives.Count -eq 0 -and $null -ne $argument.path) { Add-VMDvdDrive -VM $machine -Path $argument.path }
    elseif ($drives.Count -gt 0 -and $drives[0].Path -ne $argument.path) {
        Set-VMDvdDrive -VMDvdDrive $drives[0] -Path $argument.path
    }
    $result = @{ path = $argument.path }
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

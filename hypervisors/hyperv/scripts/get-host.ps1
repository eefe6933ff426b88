# What the host is, and where it puts disks by default.
param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
    $here = Get-VMHost
    $system = Get-CimInstance -ClassName Win32_OperatingSystem
    $module = Get-Module -ListAvailable -Name Hyper-V | Sort-Object -Property Version -Descending | Select-Object -First 1
    $result = @{
        name = $here.Name
        disks = $here.VirtualHardDiskPath
        system = $system.Caption
        version = $system.Version
        module = [string]$module.Version
        power_shell = [string]$PSVersionTable.PSVersion
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

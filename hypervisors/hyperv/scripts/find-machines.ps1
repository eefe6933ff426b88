# The machines of this host that have a disk, also where they go on above it since a checkpoint. { path }
# chain: of each, the files from the one that it writes to down to that one. A drive whose files cannot be read counts as
# another disk: no machine can be started with it.
param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
    $machines = @(Get-VM | ForEach-Object {
        $machine = $_
        Get-VMHardDiskDrive -VM $machine | ForEach-Object {
            $chain = @($_.Path)
            while ($chain[-1] -ne $argument.path -and $chain[-1] -like '*.avhdx') {
                try { $chain += (Get-VHD -Path $chain[-1]).ParentPath } catch { break }
            }
            if ($chain[-1] -eq $argument.path) {
                @{ vm = $machine.Name; state = [string]$machine.State; chain = $chain }
            }
        }
    })
    $result = @{ machines = $machines }
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

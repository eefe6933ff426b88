# Forgets an operation; one that runs is told to end, and what it was writing is removed. { operation, discard }
# discard: the disk that it has made is removed as well, if it has its name already. Disks that are merged into stay.
# gone: whether all of that is done; otherwise it is ending, and this is to be called again.
param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
    if ($argument.operation -notmatch '^[0-9A-Za-z-]{1,64}$') { throw 'StorageAgent.InvalidOperation' }
    $root = Join-Path -Path $env:ProgramData -ChildPath 'storage-agent'
    $folder = Join-Path -Path $root -ChildPath $argument.operation
    $file = Join-Path -Path $folder -ChildPath 'record.json'
    $draft = Join-Path -Path $folder -ChildPath 'record.new'
    $record = $null
    if (Test-Path -LiteralPath $file) { $record = Get-Content -LiteralPath $file -Raw | ConvertFrom-Json }
    $job = $null
    if ($null -ne $record -and $null -ne $record.job) {
        $job = Get-CimInstance -Namespace root/virtualization/v2 -ClassName Msvm_StorageJob |
            Where-Object { $_.InstanceID -eq $record.job }
    }
    $gone = $null -eq $job -or $job.JobState -ge 7
    if (-not $gone -and $job.JobState -ne 6) {
        $ending = @{ RequestedState = [uint16]4 }
        $null = Invoke-CimMethod -InputObject $job -MethodName RequestStateChange -Arguments $ending
    }
    if ($gone -and $null -ne $record -and $null -ne $record.partial) {
        if (Test-Path -LiteralPath $record.partial) { Remove-Item -LiteralPath $record.partial -Force }
        if ($argument.discard -and (Test-Path -LiteralPath $record.path)) { Remove-Item -LiteralPath $record.path -Force }
    }
    if ($gone -and (Test-Path -LiteralPath $folder)) { Remove-Item -LiteralPath $folder -Recurse -Force }
    $result = @{ gone = $gone }
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
